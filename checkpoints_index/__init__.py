"""Which weights exist, where they lie, and what they came from. Loads torch only to load
weights.
"""
