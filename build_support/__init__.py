"""What setup.py does besides packaging: find torch and the compilers, write and run a ninja file, record.

Nothing here imports torch, and nothing here is installed.
"""
