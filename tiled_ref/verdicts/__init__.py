"""From raw maps and scores to decisions: verdicts on images, marks in them."""
