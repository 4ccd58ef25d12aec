"""How things look, everywhere: one colour and one mark for each thing, and nothing told by colour alone.

The palette is Okabe and Ito's, which colour-blind readers can tell apart.
"""

TARGET = "#0072B2"
DRAFT = "#E69F00"
ACCEPTED = "#009E73"
REJECTED = "#D55E00"
BONUS = "#CC79A7"
FORMULA = "#7F7F7F"

ACCEPTED_MARK, REJECTED_MARK, BONUS_MARK = "✓", "✗", "★"
