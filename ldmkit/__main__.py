"""`python -m ldmkit`, as `accelerate launch -m ldmkit` calls it."""

from ldmkit.cli import main

main()
