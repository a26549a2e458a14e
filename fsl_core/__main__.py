"""`python -m fsl_core` is `fsl`."""

from fsl_core.cli import main

main()
