"""Images, videos and cameras through a predictor: from sources, in a pipeline, to writers."""
