"""OpenTelemetry traces of requests: what each took and when, never what was asked or answered."""
