"""lowpeft"""
