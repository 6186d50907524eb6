"""From raw maps and scores to what people are told: verdicts of images, marks on them."""
