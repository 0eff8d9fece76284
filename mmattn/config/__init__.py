"""Config files: loading, checking, editing."""
