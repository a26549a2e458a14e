"""What leaves this repository: source archives and wheels of core and every plugin. `make dist`."""
