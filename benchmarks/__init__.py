"""Speed races against the libraries people use today: `make bench`."""
