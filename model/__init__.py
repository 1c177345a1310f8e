"""Networks and mathematics. Imports torch and numpy only, by relative imports, so that an export can carry this folder."""
