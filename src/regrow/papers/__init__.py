"""Papers whose results can be reproduced, a folder each: see ``reproduce.paper``."""
