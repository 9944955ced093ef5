"""What a classifier did to a text: the effect of each word on the answer, and who inhibited whom.

`explain` returns an object that shows itself in a notebook; `docs/explaining.md` tells how to read it.
"""

from .explaining import Explanation as Explanation
from .explaining import explain as explain
