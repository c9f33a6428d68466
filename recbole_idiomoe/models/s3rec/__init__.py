"""S3Rec."""
