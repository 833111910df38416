"""From the dataset of step 4 to records: plan, networks, lock. Imports v1, records, audio and below."""
