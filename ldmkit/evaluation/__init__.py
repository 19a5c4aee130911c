"""`ldmkit eval`: how near drawn pictures are to real ones, as features of an independent network see it."""
