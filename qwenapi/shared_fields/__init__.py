"""What several interfaces have alike: function tools, schemas of answers, log-probabilities."""
