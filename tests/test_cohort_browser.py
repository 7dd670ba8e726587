"""index.html of a cohort in a browser: a click on a head sorts the rows, and the page is to be looked at."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cohorts import page
from test_cohort import noise, rows

pytestmark = pytest.mark.slow
QUIET = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync".split()


@pytest.fixture
def shown(tmp_path: Path):
    """``shown(page, *options)`` -> what the browser says of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page in")

    def show(text: str, *options: str) -> str:
        path = tmp_path / "index.html"
        path.write_text(text, encoding="utf-8")
        command = [browser, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *options, path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout

    return show


def cohort_page(folder: Path) -> str:
    """Twelve pairs whose numbers rise in another order than their names, one failed, one without a number."""
    made = rows(12)
    for place, row in enumerate(made[2:]):
        row |= {"name": f"p{place}", "folds_percent": ((7 * place) % 10) / 10, "seconds": 100.0 - 9 * place}
    made[4]["folds_percent"] = None
    return page.build_page("cohort", made, noise(4), folder)


def clicked(text: str, head: str, times: int = 1) -> str:
    poke = f"var b = Array.from(document.querySelectorAll('th button')).find(x => x.textContent === '{head}');"
    return text.replace("</body>", f"<script>{poke}{'b.click();' * times}</script></body>")


def column(dom: str, number: int) -> list[str]:
    """The texts of a column of the table, from the top."""
    body = dom.split("<tbody>")[1].split("</tbody>")[0]
    cells = [re.findall(r"<td.*?</td>", row, re.DOTALL) for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)]
    return [re.sub(r"<[^>]*>", "", row[number]).strip() for row in cells]


def test_a_click_sorts_up_another_one_down_and_empty_cells_stay_below(shown, tmp_path: Path) -> None:
    text = cohort_page(tmp_path)
    heads = re.findall(r"<th.*?</th>", text)
    folds = next(number for number, head in enumerate(heads) if "folds" in head)
    up, down = (column(shown(clicked(text, "folds, %", n), "--dump-dom"), folds) for n in (1, 2))
    numbers = [float(cell) for cell in up if cell]
    assert len(up) == 12 and numbers == sorted(numbers) and len(set(numbers)) > 5
    assert up[len(numbers) :] == [""] * (12 - len(numbers)) == down[len(numbers) :] and up[-1] == ""
    assert [float(cell) for cell in down if cell] == sorted(numbers, reverse=True)


def test_names_sort_by_the_numbers_in_them_and_the_head_says_how(shown, tmp_path: Path) -> None:
    dom = shown(clicked(cohort_page(tmp_path), "pair"), "--dump-dom")
    names = column(dom, 1)
    assert names == ["a &lt;b&gt;&amp;", "bad", *(f"p{place}" for place in range(10))]
    assert dom.count('aria-sort="ascending"') == 1


def test_the_page_can_be_photographed(shown, tmp_path: Path) -> None:
    from PIL import Image as Picture

    shown(cohort_page(tmp_path), f"--screenshot={tmp_path / 'page.png'}", "--window-size=1500,1200")
    with Picture.open(tmp_path / "page.png") as picture:
        assert picture.size == (1500, 1200) and len(picture.convert("L").getcolors()) > 100
