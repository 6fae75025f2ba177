"""`ternvl batch`: a file of requests in the form of OpenAI's Batch API, and a file with their answers."""
