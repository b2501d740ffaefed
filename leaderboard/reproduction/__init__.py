"""Tables, figures and the page of the two papers' reproductions, from their stored results."""
