"""The colours of all pictures."""

# Okabe & Ito 2008, "Color universal design"; black is left to reference lines.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
BLUE, RED, GREEN, PURPLE, ORANGE, SKY, YELLOW = COLOURS
