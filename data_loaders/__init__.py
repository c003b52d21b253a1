"""Data: schema, synthetic world, ingest, shards, and the loader that reads them."""
