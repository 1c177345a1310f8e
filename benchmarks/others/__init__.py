"""Other projects' code, run as it is: networks, training steps and data loaders out of their checkouts or packages."""
