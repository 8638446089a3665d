"""What kinds and families are written against: features and their layout, facts of a network, name patterns."""
