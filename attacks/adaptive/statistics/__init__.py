"""Pixels put in their places by what is public of images like them: statistics of many leaks under one key."""
