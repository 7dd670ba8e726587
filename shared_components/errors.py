"""The one exception that means: the input is at fault, and here is the sentence to print."""


class InputError(ValueError):
    """A fault of the user's input, told in one sentence: what was wrong, in which file, what to do."""


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the InputError in the chain of causes of ``error``, or None.

    MONAI wraps exceptions of transforms ("applying transform ..."), so the sentence is often a cause or two down.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, InputError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
