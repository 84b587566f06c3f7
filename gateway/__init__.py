"""HTTP, tenancy, jobs and storage around the engine. Never imports torch, nor anything that does."""
