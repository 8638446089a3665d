"""Types that kinds and families build on: features and their layout, facts of a network, name patterns."""
