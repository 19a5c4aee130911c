"""Fuzz targets: whatever the input, only LdmkitError may come out, and what is taken goes round unchanged.

python -m fuzz                      every target for 20 seconds
python -m fuzz recipe --seconds 3600
"""
