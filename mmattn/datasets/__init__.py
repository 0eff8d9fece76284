"""Data sets: preparing, generating, checking and loading them."""
