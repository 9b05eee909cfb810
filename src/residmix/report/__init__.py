"""Reports: a fitted model and some rows -> a plain dict -> one HTML page that opens offline."""
