"""What the schemas of all protocols are made of."""
