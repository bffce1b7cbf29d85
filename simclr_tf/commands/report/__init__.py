"""`--mode=report`: writes one page that shows how runs went and what their networks learned."""
