"""Pictures as bytes: every image format that is read or written, by name, with strict checks. Imports no other package."""
