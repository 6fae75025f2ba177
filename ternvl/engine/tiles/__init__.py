"""The features of image tiles on disk: their files, the thread that reads and writes them, and what they belong to."""
