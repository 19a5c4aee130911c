"""A page of static files on which a bundle draws in the visitor's own browser."""
