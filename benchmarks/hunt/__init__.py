"""A spatial transformer that hunts for small traffic signs in photos: where looking is hard."""
