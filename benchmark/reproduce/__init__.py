"""The two papers that Keyhole started from, computed anew beside what they print."""
