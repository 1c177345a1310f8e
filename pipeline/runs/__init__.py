"""A run's folder and its configuration: what a start finds, resumes, closes, and tells about itself."""
