"""From a recipe to a plan: patterns become sites, and conflicts are refused before anything is changed."""
