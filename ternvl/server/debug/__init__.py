"""What a running server does now, and where its time goes, for administrators."""
