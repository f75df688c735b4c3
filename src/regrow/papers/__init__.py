"""Papers whose results can be reproduced, one folder each: see ``reproduce.paper``."""
