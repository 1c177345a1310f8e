"""Pages for people: a run as one HTML page, and `biggan explore`."""
