"""What package_bundle.py and verify_bundles.py are made of: releases of bundles, and the checks before one."""
