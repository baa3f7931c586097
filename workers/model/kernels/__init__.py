"""Triton kernels, and beside them the plain torch that says what they compute.

Only what is imported from here needs Triton; nothing in this file does.
"""
