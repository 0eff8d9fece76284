"""Importing data sets of other formats into one layout; see `importer.import_data`."""
