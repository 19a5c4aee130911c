"""Pictures: scanning and decoding a folder, fetching a data set, drawing the toy set."""
