"""Writers of the generated parts of pages, by what they write."""
