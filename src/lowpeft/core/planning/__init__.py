"""Plans from recipes: patterns select sites, and conflicts raise errors before the model is changed."""
