"""Who labels what is picked: requests go out, answers come back, some of them later or never."""
