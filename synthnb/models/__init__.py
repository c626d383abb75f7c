"""The model: `encoders` hear, `vector_field` moves parameters, `flow` trains and samples, `checkpoint` keeps."""
