"""What is made with posteriors: validation, comparison's guides, `jp.compile` and `jp.explain`."""
